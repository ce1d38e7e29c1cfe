"""Chat servers: replies of other models, and LLMs as judges."""
