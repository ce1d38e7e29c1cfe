"""What a config needs of hardware that is not there: its real steps, compiled for it and read."""
