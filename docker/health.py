"""Ask the service in this container whether it is alive; the exit status says so."""

import http.client
import os
import sys

service = http.client.HTTPConnection("127.0.0.1", int(os.environ["PORT"]), timeout=4)  # which heeds no http_proxy
service.request("GET", "/healthz")
sys.exit(service.getresponse().status != 200)
