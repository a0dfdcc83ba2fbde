"""wsrun: models, adapters, steering, scoring and tables; import its modules one by one."""
