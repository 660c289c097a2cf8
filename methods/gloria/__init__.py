"""GLoRIA (Huang et al., ICCV 2021)."""
