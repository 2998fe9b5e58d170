"""The command `hf-clip`: a module a verb. Parsers import nothing heavy; a verb imports what it needs as it runs."""
