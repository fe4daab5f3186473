"""Manifests from what people have, one file a format: tables, MONAI datalists, MEDS events, the folder of Flex-MoE.

Each importer gives a table, a schema as it stands in schema.yaml, and what a person should know; `table.write` makes
the folder of them. Nothing is scaled, imputed or encoded here: a run fits all that on its train rows.
"""
