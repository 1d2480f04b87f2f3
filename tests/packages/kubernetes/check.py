#!/usr/bin/env python3
"""Validates the manifests in units/kubernetes against the schemas of Kubernetes' API.

    pip install -r tests/packages/kubernetes/requirements.txt && python3 tests/packages/kubernetes/check.py
"""

import copy
import pathlib
import sys

import kubernetes_validate
import yaml

# The oldest that the guide promises, and the newest that there is a schema of.
VERSIONS = ["1.30", "1.37"]
MANIFESTS = pathlib.Path(__file__).parents[3] / "units/kubernetes"


def containers(document):
    spec = document.get("spec", {}).get("template", {}).get("spec", {})
    return spec.get("initContainers", []) + spec.get("containers", [])


def main():
    paths = sorted(MANIFESTS.glob("*.yaml"))
    documents = [(path.name, document) for path in paths for document in yaml.safe_load_all(path.read_text())]
    kinds = [document["kind"] for _, document in documents]
    if kinds != ["Deployment", "Deployment", "Service"]:
        sys.exit(f"{MANIFESTS} has {kinds}: this program does not know whether that is right")
    for version in VERSIONS:
        for name, document in documents:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                sys.exit(f"{name}, Kubernetes {version}: {error.message} at {list(error.absolute_path)}")
        # A field that does not exist has to be found, or all of this says nothing.
        wrong = copy.deepcopy(documents[0][1])
        containers(wrong)[0]["restartPolicies"] = "Always"
        try:
            kubernetes_validate.validate(wrong, version, strict=True)
            sys.exit(f"Kubernetes {version}: the schemas accept everything")
        except kubernetes_validate.ValidationError:
            pass
    print(f"{len(documents)} manifests are valid in Kubernetes {' and '.join(VERSIONS)}")


main()
