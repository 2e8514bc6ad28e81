# Prints what google-auth makes of the metadata server, as one line of JSON.
import json
import google.auth.transport.requests
from google.auth.compute_engine import _metadata as metadata
request = google.auth.transport.requests.Request()
print(json.dumps({
    "ping": metadata.ping(request),
    "project": metadata.get_project_id(request),
    "id": str(metadata.get(request, "instance/id")),
    "universe": metadata.get_universe_domain(request),
    "account": metadata.get_service_account_info(request)["email"],
    "token": metadata.get_service_account_token(request)[0],
}))
