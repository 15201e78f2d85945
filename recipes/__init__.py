"""The shipped recipes, one TOML file per data set."""
