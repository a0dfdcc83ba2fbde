"""Open a dialogue: the model, and the change of its weights that one side carries."""

from wsrun.cli.change import read_change
from wsrun.cli.chat_options import Chat
from wsrun.cli.dialogue import Dialogue
from wsrun.models.load import limit_threads, load_model
from wsrun.steer.interventions import WeightDelta, applied


def open_dialogue(cfg: Chat) -> tuple[Dialogue, list[str]]:
    """The dialogue of the options, and what to know of its dW; the change is tried on the model."""
    model, tok = load_model(cfg.model, cfg.dtype, cfg.device)
    limit_threads(model)
    dW, alpha, notes = read_change(cfg, model)
    change = WeightDelta(dW)
    with applied(model, change, alpha):
        pass
    drawn = cfg.seed, cfg.temperature, cfg.top_p, cfg.max_new_tokens
    return Dialogue(model, tok, change, alpha, cfg.system, *drawn), notes
