"""Report of what a run has published: tables, curves and provenance. No model, no slide, no torch."""
