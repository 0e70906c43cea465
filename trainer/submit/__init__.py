"""`submit`: the same run file on a cluster. One order, one record of what was launched, a module a kind of cluster."""
