"""Write: answer rows → one committed table for each unit. The last stage; runs in the driver."""
