"""One decoder for the Llama, Mistral, Gemma and Qwen families: its description, its forward pass, its weights."""
