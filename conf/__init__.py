"""Configuration: one commented yaml for every option, typed by the schemas that `conf.schema` registers."""
