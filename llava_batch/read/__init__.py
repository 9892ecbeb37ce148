"""Read: what `--input` names → units → rows. The first stage; knows no other."""
