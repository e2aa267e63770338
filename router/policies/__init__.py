"""Policies as every process of the mesh reads them: documents, their checks, who follows them."""
