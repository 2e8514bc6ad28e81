# Prints what google-auth finds out about the account that a container has, as one line of JSON.
import json
import google.auth
from google.auth.compute_engine import _metadata as metadata
from google.auth.transport.requests import Request
request = Request()
credentials, project = google.auth.default()
credentials.refresh(request)
print(json.dumps({
    "found": metadata.ping(request),
    "project": project,
    "account": credentials.service_account_email,
    "universe": credentials.universe_domain,
    "token": credentials.token,
}))
