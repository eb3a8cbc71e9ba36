"""The page that shows everything an experiment has computed: tables, charts and pictures, then HTML."""
