"""The Alluxio dialect: what published `alluxiofs` clients and S3 clients ask, over this worker's cache.

Three listeners, each off until it has a port: `/v1/*` with `/v1/node` in list form (the port that is
registered in etcd, for clients up to 1.0.17), the same in dict form (28080 by convention, for clients
from 1.0.18 on), and an S3-style data port (29998 by convention). docs/alluxio.md is the operator's view.
"""
