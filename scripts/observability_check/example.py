"""What /metrics of a service would say by the contract."""

from contract import metrics_of


def example_text(contract, service):
    """Returns what /metrics of a service would say, every label value once."""
    lines = ["# HELP target_info who this is", "# TYPE target_info gauge", f'target_info{{service_name="{service}"}} 1']
    for name, metric in metrics_of(contract).items():
        if service not in metric["services"]:
            continue
        lines += [f"# HELP {name} {metric['about']}", f"# TYPE {name} {metric['kind']}"]
        for labels in label_sets(metric["labels"], EXAMPLE_METHODS[service]):
            given = ",".join(f'{k}="{v}"' for k, v in labels.items())
            if metric["kind"] == "histogram":
                comma = "," if given else ""
                for bound, count in (("0.01", 1), ("1", 3), ("10", 4), ("+Inf", 4)):
                    lines.append(f'{name}_bucket{{{given}{comma}le="{bound}"}} {count}')
                lines += [f"{name}_sum{{{given}}} 5", f"{name}_count{{{given}}} 4"]
            else:
                lines.append(f"{name}{{{given}}} 3")
    return "\n".join(lines) + "\n"


EXAMPLE_METHODS = {"coordinator": "CoordinatorService/GetRun", "calibrator": "CalibratorService/StreamFactors", "surgeon": "SurgeonService/UploadFactors"}


def label_sets(labels, method):
    """Returns dictionaries in which every value of every label comes up."""
    examples = {"rpc_method": f"llm_surgeon.v1.{method}", "rpc_response_status_code": "OK"}
    lists = {k: v if isinstance(v, list) else [examples.get(k, "0")] for k, v in labels.items()}
    sets = [{}]
    for label, values in lists.items():
        sets = [one | {label: value} for one in sets for value in values]
    return sets
