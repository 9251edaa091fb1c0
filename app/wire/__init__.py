"""How it is spelt. Pure: text to events, commands to text; every vendor's words live in one module each."""
