"""Plug-ins that train token tables with Ember in existing trainers: one file each."""
