"""Import tables of somebody's own: any common format in, a log folder out."""
