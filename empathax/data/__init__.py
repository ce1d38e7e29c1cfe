"""From files of dialogues to rows of token ids: sources, chat templates, prefix trees, packing, loader."""
