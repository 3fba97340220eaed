"""Engine processes: started, watched, restarted."""
