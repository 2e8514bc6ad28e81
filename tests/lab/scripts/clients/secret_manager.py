# Prints what google-cloud-secret-manager makes of the Secret Manager at $SECRET_MANAGER, as one line of JSON: of every
# version that is an argument its name, its value and whether that is right, or the kind of error with its reason.
import json
import os
import sys
import google_crc32c
from google.api_core.exceptions import GoogleAPICallError
from google.auth.compute_engine import Credentials
from google.cloud.secretmanager_v1 import SecretManagerServiceClient
client = SecretManagerServiceClient(
    credentials=Credentials(), transport="rest", client_options={"api_endpoint": os.environ["SECRET_MANAGER"]})


def access(version):
    try:
        answer = client.access_secret_version(name=f"projects/openclaw-lab/secrets/{version}")
    except GoogleAPICallError as error:
        return [type(error).__name__, next((detail["reason"] for detail in error.details if "reason" in detail), None)]
    data = answer.payload.data
    return [answer.name, data.decode(), google_crc32c.value(data) == answer.payload.data_crc32c]


print(json.dumps({version: access(version) for version in sys.argv[1:]}))
