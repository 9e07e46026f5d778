"""Signatures of archives: who may say that an archive's code runs here."""
