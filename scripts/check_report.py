#!/usr/bin/env python3
"""Checks pruning_report.json of output folders against its schema: check_report.py FOLDER...

Stricter than the schema is for readers: a field that it does not describe is a fault, so that none is forgotten.
"""

import json
import pathlib
import sys

from jsonschema import Draft202012Validator

SCHEMA = pathlib.Path(__file__).parent.parent / "docs" / "pruning_report.schema.json"


def closed(schema):
    """Returns the schema without room for fields that it does not describe."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: closed(part) for name, part in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        parts["additionalProperties"] = False
    return parts


def main(folders):
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(closed(schema))
    faults = 0
    for folder in folders:
        report = json.loads((pathlib.Path(folder) / "pruning_report.json").read_text())
        for fault in validator.iter_errors(report):
            print(f"{folder}: {fault.json_path}: {fault.message[:300]}", file=sys.stderr)
            faults += 1
    if not folders or faults:
        sys.exit("no folders" if not folders else f"{faults} faults; the schema is {SCHEMA.name}")


main(sys.argv[1:])
