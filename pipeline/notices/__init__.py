"""Telling people: alerts and the weekly report, by mail and webhook, once each, remembered."""
