"""Kinds of adapters that PEFT 0.21 writes, each as a function from a tiny model to a PEFT model.

`KINDS` is the table: every `peft_type`, and of LoRA and the other families that are read, every
option that changes what the checkpoint means.
"""

from dataclasses import dataclass, field, replace
from typing import Any

import peft

from tests.compat.builders import (
    LM,
    PATTERNS,
    TARGETS,
    Make,
    combined,
    config_only,
    converted,
    eva,
    in_bfloat16,
    lora,
    lora_ga,
    oft,
    other,
    plain,
    prompt,
)


@dataclass(frozen=True)
class Kind:
    """One row of the table."""

    name: str
    make: Make
    model: str = "untied"
    edit: dict[str, Any] = field(default_factory=dict)
    """fields of adapter_config.json that are changed by hand once it is written"""
    save: dict[str, Any] = field(default_factory=dict)
    """what save_pretrained is told beside the folder"""
    merges: bool = True
    """whether PEFT itself can say what it does to the weights"""
    refused: str = ""
    """what the sentence must name where the kind is to be refused"""


LORA = [
    Kind("LoRA", lora()),
    Kind("LoRA, target_modules a pattern", lora(target_modules=r".*\.(q_proj|down_proj)")),
    Kind("LoRA, target_modules all-linear", lora(target_modules="all-linear")),
    Kind("LoRA, exclude_modules", lora(exclude_modules=["model.layers.0.mlp.down_proj"])),
    Kind("LoRA, layers_to_transform", lora(layers_to_transform=[1])),
    Kind("LoRA, layers_pattern", lora(layers_to_transform=1, layers_pattern="layers")),
    Kind("LoRA, rank_pattern", lora(rank_pattern=PATTERNS["rank_pattern"])),
    Kind("LoRA, alpha_pattern", lora(alpha_pattern=PATTERNS["alpha_pattern"])),
    Kind("LoRA, lora_dropout", lora(lora_dropout=0.5)),
    Kind("LoRA, r and lora_alpha as text", lora(), edit={"r": "2", "lora_alpha": "3"}),
    Kind("LoRA, rslora", lora(use_rslora=True)),
    Kind("LoRA, rslora with patterns", lora(use_rslora=True, **PATTERNS)),
    Kind("LoRA, stored in bfloat16", in_bfloat16),
    Kind("LoRA, add_weighted_adapter cat", combined("cat"), save={"selected_adapters": ["both"]}),
    Kind("LoRA, add_weighted_adapter svd", combined("svd"), save={"selected_adapters": ["both"]}),
    Kind("LoRA, on untied lm_head", lora(target_modules=["q_proj", "lm_head"])),
    Kind("LoRA, on tied lm_head", lora(target_modules=["q_proj", "lm_head"]), "tied",
         refused="lm_head"),
    Kind("LoRA, on tied lm_head, ensure_weight_tying",
         lora(target_modules=["embed_tokens", "lm_head"], ensure_weight_tying=True), "tied",
         refused="embed_tokens"),
    Kind("LoRA, on embed_tokens", lora(target_modules=["q_proj", "embed_tokens"]),
         refused="embed_tokens"),
    Kind("LoRA, modules_to_save lm_head", lora(modules_to_save=["lm_head"])),
    Kind("LoRA, modules_to_save embed_tokens and lm_head",
         lora(modules_to_save=["embed_tokens", "lm_head"])),
    Kind("LoRA, modules_to_save of a tied lm_head", lora(modules_to_save=["lm_head"]), "tied",
         refused="lm_head"),
    Kind("LoRA, modules_to_save norm", lora(modules_to_save=["norm"])),
    Kind("LoRA, modules_to_save v_proj", lora(modules_to_save=["v_proj"])),
    Kind("LoRA, save_embedding_layers", lora(), save={"save_embedding_layers": True}),
    Kind("LoRA, on Conv1D", lora(target_modules=["c_attn"], fan_in_fan_out=True), "gpt2"),
    Kind("LoRA, on square Conv1D",
         lora(target_modules=["attn.c_proj"], fan_in_fan_out=True), "gpt2"),
    Kind("LoRA, bias all", lora(bias="all"), refused="bias"),
    Kind("LoRA, bias lora_only", lora(bias="lora_only"), refused="bias"),
    Kind("LoRA, lora_bias", lora(lora_bias=True, target_modules=["q_proj"]), refused="lora_bias"),
    Kind("LoRA, layer_replication", lora(layer_replication=[[0, 2], [1, 2]]), merges=False,
         refused="layer_replication"),
    Kind("LoRA, trainable_token_indices", lora(trainable_token_indices={"embed_tokens": [3, 5]}),
         refused="trainable_token_indices"),
    Kind("LoRA, target_parameters",
         lora(target_parameters=["mlp.experts.down_proj"], target_modules=["q_proj"]), "mixtral",
         refused="target_parameters"),
    Kind("LoRA, pickled (safe_serialization=False)", lora(), save={"safe_serialization": False},
         refused="adapter_model.safetensors"),
    Kind("LoRA, init False", lora(init_lora_weights=False)),
    Kind("LoRA, init gaussian", lora(init_lora_weights="gaussian")),
    Kind("LoRA, init orthogonal", lora(init_lora_weights="orthogonal")),
    Kind("LoRA, init eva", eva),
    Kind("LoRA, init mica", lora(init_lora_weights="mica")),
    Kind("LoRA, init olora", lora(init_lora_weights="olora"), refused="olora"),
    Kind("LoRA, init pissa", lora(init_lora_weights="pissa")),
    Kind("LoRA, init pissa, rslora with patterns",
         lora(init_lora_weights="pissa", use_rslora=True, **PATTERNS)),
    Kind("LoRA, init pissa_niter_4", lora(init_lora_weights="pissa_niter_4"),
         refused="pissa_niter_4"),
    Kind("LoRA, init corda", lora(), edit={"init_lora_weights": "corda",
                                           "corda_config": {"corda_method": "kpm"}},
         refused="corda"),
    Kind("LoRA, init lora_ga", lora_ga, refused="lora_ga"),
    Kind("LoRA, init loftq", lora(), edit={"init_lora_weights": "loftq",
                                           "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}},
         refused="loftq"),
    Kind("LoRA, converted from pissa", converted(init_lora_weights="pissa")),
    Kind("LoRA, converted from pissa_niter_4, rslora",
         converted(init_lora_weights="pissa_niter_4", use_rslora=True)),
    Kind("LoRA, converted from pissa_niter_4, patterns",
         converted(init_lora_weights="pissa_niter_4", **PATTERNS)),
    Kind("LoRA, converted from olora", converted(init_lora_weights="olora")),
    Kind("LoRA, a field of a newer PEFT", lora(), edit={"use_newer_lora": True},
         merges=False, refused="use_newer_lora"),
    Kind("DoRA", lora(use_dora=True)),
    Kind("DoRA, rslora with patterns", lora(use_dora=True, use_rslora=True, **PATTERNS)),
    Kind("DoRA, init pissa", lora(use_dora=True, init_lora_weights="pissa"), refused="use_dora"),
    Kind("DoRA, on Conv1D",
         lora(use_dora=True, target_modules=["c_attn"], fan_in_fan_out=True), "gpt2"),
    Kind("QA-LoRA", lora(use_qalora=True, qalora_group_size=4), merges=False, refused="use_qalora"),
    Kind("aLoRA", lora(alora_invocation_tokens=[3, 4], task_type=LM), merges=False,
         refused="alora_invocation_tokens"),
    Kind("BD-LoRA", lora(use_bdlora=peft.BdLoraConfig(
        target_modules_bd_a=["q_proj"], target_modules_bd_b=["down_proj"], nblocks=2)),
         refused="use_bdlora"),
    Kind("KaSA", lora(kasa_config=peft.KasaConfig()), refused="kasa_config"),
    Kind("VeLoRA", lora(velora_config=peft.VeloraConfig(num_groups=2)), refused="velora_config"),
    Kind("MonteCLoRA", lora(monteclora_config=peft.MontecloraConfig()),
         refused="monteclora_config"),
    Kind("Arrow", lora(), edit={"arrow_config": {"top_k": 1}}, refused="arrow_config"),
]  # fmt: skip

READ = [
    Kind("OFT, block size", oft()),
    Kind("OFT, r", oft(r=2, oft_block_size=0)),
    Kind("OFT, block_share", oft(block_share=True)),
    Kind("OFT, constrained", oft(coft=True, eps=0.3)),
    Kind("OFT, Cayley-Neumann", oft(use_cayley_neumann=True)),
    Kind("OFT, Cayley-Neumann, 3 terms", oft(use_cayley_neumann=True, num_cayley_neumann_terms=3)),
    Kind("OFT, module_dropout", oft(module_dropout=0.5)),
    Kind("OFT, bias all", oft(bias="all"), refused="bias"),
    Kind("OFT, modules_to_save lm_head", oft(modules_to_save=["lm_head"])),
    Kind("BOFT, block size", other("BOFTConfig", boft_block_size=4)),
    Kind("BOFT, block number", other("BOFTConfig", boft_block_size=0, boft_block_num=2)),
    Kind("BOFT, 2 factors", other("BOFTConfig", boft_block_size=4, boft_n_butterfly_factor=2)),
    Kind("BOFT, dropout", other("BOFTConfig", boft_block_size=4, boft_dropout=0.5)),
    Kind("BOFT, bias boft_only", other("BOFTConfig", boft_block_size=4, bias="boft_only"),
         refused="bias"),
    Kind("IA3, attention", other("IA3Config", target_modules=["o_proj"], feedforward_modules=[])),
    Kind("IA3, feedforward", other("IA3Config", feedforward_modules=["down_proj"])),
    Kind("IA3, with biases", other("IA3Config", target_modules=["k_proj", "v_proj"],
                                   feedforward_modules=[])),
    Kind("IA3, on Conv1D", other("IA3Config", target_modules=["c_attn"], feedforward_modules=[],
                                 fan_in_fan_out=True), "gpt2"),
    Kind("LoHa", other("LoHaConfig", r=2, alpha=3)),
    Kind("LoHa, patterns", other("LoHaConfig", r=2, alpha=3, **PATTERNS)),
    Kind("LoHa, rank_dropout", other("LoHaConfig", r=2, alpha=3, rank_dropout=0.5)),
    Kind("LoHa, use_effective_conv2d", other("LoHaConfig", r=2, use_effective_conv2d=True),
         refused="use_effective_conv2d"),
    Kind("LoKr", other("LoKrConfig", r=1, alpha=3)),
    Kind("LoKr, whole matrices", other("LoKrConfig", r=8, alpha=3)),
    Kind("LoKr, decompose_both", other("LoKrConfig", r=1, alpha=3, decompose_both=True)),
    Kind("LoKr, decompose_factor", other("LoKrConfig", r=1, alpha=3, decompose_factor=2)),
    Kind("LoKr, patterns", other("LoKrConfig", r=2, alpha=3, **PATTERNS)),
    Kind("LoKr, rank_dropout_scale",
         other("LoKrConfig", r=1, alpha=3, rank_dropout=0.5, rank_dropout_scale=True)),
    Kind("LoKr, use_effective_conv2d", other("LoKrConfig", r=1, use_effective_conv2d=True),
         refused="use_effective_conv2d"),
    Kind("DeLoRA", other("DeloraConfig", r=2, delora_lambda=3)),
    Kind("DeLoRA, patterns", other("DeloraConfig", r=2, delora_lambda=3,
                                   rank_pattern={"q_proj": 3}, lambda_pattern={"down_proj": 5})),
    Kind("DeLoRA, bias all", other("DeloraConfig", r=2, bias="all"), refused="bias"),
]  # fmt: skip

OTHERS = [
    Kind("AdaLoRA", other("AdaLoraConfig", init_r=3, target_r=2, total_step=10)),
    Kind("AdaMSS", config_only(lambda: peft.LilyConfig(target_modules=TARGETS)),
         edit={"peft_type": "ADAMSS"}, merges=False),  # it needs scikit-learn
    Kind("Adaption prompt", plain(lambda: peft.AdaptionPromptConfig(
        task_type=LM, adapter_len=2, adapter_layers=1)), "llama", merges=False),
    Kind("BEFT", other("BeftConfig", target_modules=["v_proj"])),
    Kind("C3A", other("C3AConfig", block_size=8)),
    Kind("Cartridge", prompt("CartridgeConfig"), merges=False),
    Kind("CPT", plain(lambda: peft.CPTConfig(
        task_type=LM, cpt_token_ids=[1, 2], cpt_mask=[1, 1], cpt_tokens_type_mask=[1, 1])),
         merges=False),
    Kind("DEFT", other("DeftConfig", r=2)),
    Kind("FourierFT", other("FourierFTConfig", n_frequency=20)),
    Kind("FRoD", other("FrodConfig", progressbar=False)),
    Kind("GLoRA", other("GloraConfig", r=2)),
    Kind("GraLoRA", other("GraloraConfig", r=4, gralora_k=2)),
    Kind("HiRA", other("HiraConfig", r=2)),
    Kind("HRA", other("HRAConfig", r=2)),
    Kind("Lily", other("LilyConfig", r=2), merges=False),
    Kind("LN tuning", other("LNTuningConfig", target_modules=["input_layernorm"])),
    Kind("MiSS", other("MissConfig", r=4)),
    Kind("MiSS, bat (Bone)", other("MissConfig", r=4, init_weights="bat")),
    Kind("Multitask prompt tuning", prompt("MultitaskPromptTuningConfig"), merges=False),
    Kind("OSF", other("OSFConfig", effective_rank=4)),
    Kind("P-tuning", prompt("PromptEncoderConfig"), merges=False),
    Kind("PEANuT", other("PeanutConfig", r=2)),
    Kind("Poly", other("PolyConfig", r=2), merges=False),
    Kind("Prefix tuning", prompt("PrefixTuningConfig"), merges=False),
    Kind("Prompt tuning", prompt("PromptTuningConfig"), merges=False),
    Kind("PSOFT", other("PsoftConfig", r=2)),
    Kind("PVeRA", other("PveraConfig", r=4)),
    Kind("RandLoRA", other("RandLoraConfig", r=2)),
    Kind("RoAd", other("RoadConfig", group_size=4)),
    Kind("Shadow", other("ShadowConfig", r=2), merges=False),
    Kind("SHiRA", other("ShiraConfig", r=2)),
    Kind("Supertuning", other("SupertuningConfig")),
    Kind("TinyLoRA", other("TinyLoraConfig")),
    Kind("Trainable tokens", plain(lambda: peft.TrainableTokensConfig(
        token_indices=[3, 5], target_modules=["embed_tokens"]))),
    Kind("UniLoRA", other("UniLoraConfig", r=2)),
    Kind("VBLoRA", other("VBLoRAConfig", r=2, num_vectors=8, vector_length=4)),
    Kind("VeRA", other("VeraConfig", r=4)),
    Kind("WaveFT", other("WaveFTConfig", n_frequency=20)),
    Kind("X-LoRA", config_only(lambda: peft.XLoraConfig(
        hidden_size=16, adapters={"0": "one", "1": "two"}, task_type=LM)), merges=False),
]  # fmt: skip

KINDS = [*LORA, *READ, *(replace(kind, refused="peft_type") for kind in OTHERS)]
