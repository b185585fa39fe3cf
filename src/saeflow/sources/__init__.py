"""Where features come from: dictionaries on disk or on a hub, and the language model they were trained on."""
