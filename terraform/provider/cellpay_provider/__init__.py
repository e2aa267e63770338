"""A Terraform provider for Cellpay's control plane, over plugin protocol 6 (the package `tf`).

It lives in an environment of its own, .venv-terraform: `tf` needs a protobuf below 6. It reaches
the control plane by gRPC with stubs made for that protobuf (terraform/install.py), as an operator.
"""
