"""The same assistant by voice: scenes of a site, rooms on the RTC platform, and who may open and close them."""
