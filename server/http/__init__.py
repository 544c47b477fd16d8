"""The OpenAI-compatible HTTP API on Falcon and waitress. No tensors here."""
