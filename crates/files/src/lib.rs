//! Loading dock of Reverie: safetensors, GGUF, Hugging Face folders and hub, weight views by name.
