"""Parts of networks that know no modality."""
