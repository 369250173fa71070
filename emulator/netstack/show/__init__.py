"""Pure renderers: records of a namespace as the text of the real tools."""
