-- Sends no request to a version that has no worker. Envoy runs this after resolve.lua, while there is such a version;
-- scripts/gateway/health.py puts the table WITHOUT before it, and whether there are OTHER_SERVERS that are not watched.

function envoy_on_request(handle)
  local headers = handle:headers()
  local cluster = headers:get("x-gateway-cluster")
  if not cluster or not WITHOUT[cluster:match("^[^|]*|[^|]*")] then return end
  if OTHER_SERVERS then return handle:streamInfo():dynamicMetadata():set("envoy.lb", "elsewhere", true) end
  if cluster:find("|guarded", 1, true) then
    local over_grpc = headers:get("x-gateway-route"):match("%-grpc$") or ""
    headers:replace("x-gateway-route", "passed-over" .. over_grpc)
    headers:replace("x-gateway-cluster", "fallback")
  else
    headers:replace("x-gateway-cluster", "no-worker")
  end
  handle:clearRouteCache()
end
