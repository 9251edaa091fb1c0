"""The whole service on one machine: a server process for each region behind a stand-in for Fly's edge."""
