"""The demo's world of drawn objects, which stands in for PASCAL VOC 2012 and SBD."""
