"""The earlier place of COCO evaluation, which is in ``metrics`` now, for scripts that import it from here."""
