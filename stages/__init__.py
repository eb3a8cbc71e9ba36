"""The DAG's nodes, a module each: parameters and files in, library calls, whole files out."""
