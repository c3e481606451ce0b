"""The description of files for people and programs: records, measurements, and the page of `report`."""
