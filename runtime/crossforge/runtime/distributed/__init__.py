"""Past one machine: files of pairs of any size, scored in shards by one process or by actors on Ray; and Ray Serve.

::

    from crossforge.runtime.distributed.bulk import score_file
    from crossforge.runtime.distributed.ray_data import RayRunner
    from crossforge.runtime.distributed.deployment import build_app
"""
