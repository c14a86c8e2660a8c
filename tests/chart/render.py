"""Renders the chart as Helm does and checks what comes out, for tests/chart.rs.

Reads a JSON object from standard input: {"chart", "name", "namespace", "values", "versions"}.
Writes one: {"documents": [...], "notes": "...", "findings": [...]} or {"error": "..."}.
"""

import json
import sys

import helm_python as helm
import kubernetes_validate
import yaml


def main():
    request = json.load(sys.stdin)
    values = request["values"]
    try:
        with helm.Chart.load(request["chart"]) as chart:
            chart.validate_schema(values)
            rendered = chart.render(values, name=request["name"], namespace=request["namespace"])
    except helm.HelmError as error:
        return {"error": str(error)}
    notes = "".join(text for path, text in rendered.items() if path.endswith("NOTES.txt"))
    documents = [
        document
        for path, text in sorted(rendered.items())
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document is not None
    ]
    report = helm.lint(request["chart"], values, strict=True, namespace=request["namespace"])
    # 1 is information: that a chart has no icon.
    findings = [message["error"] for message in report["messages"] if message["severity"] > 1] + report["errors"]
    for document in documents:
        for version in request["versions"]:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                findings.append(f"{document['kind']}, Kubernetes {version}: {error.message}")
    return {"documents": documents, "notes": notes, "findings": findings}


json.dump(main(), sys.stdout)
