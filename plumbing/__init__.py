"""All that a reader of the science does not need. Each script can be read without this folder."""
