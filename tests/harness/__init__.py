"""What tests stand on: tiny studies, sites and servers that run for real, fakes of what is not ours."""
