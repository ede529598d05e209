"""What each device is and can do, as frozen data: `catalogue.find` turns a name into a `target.Target`."""
