"""Raw signals from files, folders, tables, hubs and generators."""
