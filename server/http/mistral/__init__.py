"""Mistral's OCR API on this server: /v1/ocr, /v1/ocr/jobs and /v1/files, for clients of that API."""
