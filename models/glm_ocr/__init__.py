"""The GLM-OCR family: elements of documents, read by a small decoder with positions in three axes."""
