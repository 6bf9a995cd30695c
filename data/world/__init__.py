"""The built-in world: word problems, documents and a small web."""
