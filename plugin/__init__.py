"""What the user's framework sees: the LangChain chat model and the command line."""
